# Makes an initrd with dracut: dracut.sh RELEASE MODULES EARLY. The root holds dracut and the kernel's modules.
#   in   /in/initrd.sh and /in/busybox, the shared initrd's own: how the root is opened stays what it is elsewhere
#        /in/files/... what is added by path; /in/hooks/start/NN, /in/hooks/root/NN
#   out  /out/archive, not compressed
release=$1 modules=$2 early=$3
export dracutbasedir=/out/dracut TMPDIR=/out/tmp PATH=/out/bin:$PATH
mkdir -p /out/tmp /out/bin "/out/lib/modules/$release" /out/added/kbuild/bin
ln -s /usr/bin/gawk /out/bin/awk
cp -r /usr/lib/dracut /out/dracut
cp -r "/usr/lib/modules/$release/." "/out/lib/modules/$release"
# Plain modules: kmod reads packed ones by libraries that it opens when it wants them, so that nobody sees to carry them.
find "/out/lib/modules/$release" -name '*.ko.xz' -exec xz -d {} +
find "/out/lib/modules/$release" -name '*.ko.zst' -exec zstd -q -d --rm {} +
depmod -b /out "$release"

module=/out/dracut/modules.d/90kbuild
mkdir $module
cat > $module/module-setup.sh <<'END'
check() { return 0; }
depends() { echo base; }
installkernel() { :; }
install() {
    inst_multiple dmsetup losetup mount umount modprobe stat sort grep cat mkdir sleep tr ls mv chmod chown xargs cmp
    inst_multiple -o cut head sed sha256sum touch cp rm rmdir readlink basename dirname seq expr wc tail ip wget
    inst_hook cmdline 91 "$moddir/cmdline.sh"
    inst_hook mount 10 "$moddir/mount.sh"
}
END
cat > $module/cmdline.sh <<'END'
root=kbuild
rootok=1
END
cat > $module/mount.sh <<'END'
if [ ! -e /run/kbuild/mounted ]; then
    KBUILD_PATH=$PATH:/kbuild/bin sh /kbuild/init && : > /run/kbuild/mounted
fi
END
chmod 0755 $module/*.sh

cp /in/initrd.sh /out/added/kbuild/init
cp /in/busybox /out/added/kbuild/bin/busybox
chmod 0755 /out/added/kbuild/init /out/added/kbuild/bin/busybox
# Only what dracut's programs lack: busybox starts its own applets first, and its modprobe cannot read packed modules.
for applet in findfs reboot udhcpc; do
    ln -s busybox "/out/added/kbuild/bin/$applet"
done
mkdir -p /out/added/etc
echo "$early" | tr ' ' '\n' > /out/added/etc/modules
[ ! -d /in/hooks ] || cp -r /in/hooks /out/added/hooks
[ ! -d /in/files ] || cp -r /in/files/. /out/added
find /out/added -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +

dracut --quiet --reproducible --no-hostonly --no-hostonly-cmdline --no-compress --no-early-microcode \
    --kver "$release" --kmoddir "/out/lib/modules/$release" --tmpdir /out/tmp --logfile /dev/null \
    --modules "base kernel-modules udev-rules kbuild" --add-drivers "$modules $early" \
    --include /out/added / --force /out/archive >&2
