# Compiles a kernel: kernel.sh BASE MACHINE LOCALVERSION. BASE is a target of make that ends in config.
#   in   /in/source (a tar), /in/options (lines as in .config, over the base), /in/config (a whole one, or none)
#   out  /out/kernel.tar: boot/vmlinuz-RELEASE, boot/config-RELEASE, boot/System.map-RELEASE, lib/modules/RELEASE,
#        and what modules are compiled against, in usr/src/linux-headers-RELEASE
base=$1 arch=$2 local=$3
export ARCH=$arch KBUILD_BUILD_USER=kbuild KBUILD_BUILD_HOST=kbuild KBUILD_BUILD_VERSION=1
export KBUILD_BUILD_TIMESTAMP="@$SOURCE_DATE_EPOCH" LOCALVERSION=$local KCONFIG_NOTIMESTAMP=1
export KCFLAGS="-ffile-prefix-map=/out/work=." KAFLAGS="-ffile-prefix-map=/out/work=."
mkdir /out/work /out/made /tmp/bin
ln -s /usr/bin/mawk /tmp/bin/awk # which awk it is, a package script would have chosen
export PATH=/tmp/bin:$PATH
tar -x -f /in/source -C /out/work --no-same-owner --strip-components=1
cd /out/work
[ -e Kbuild ] && [ -e Makefile ] || { echo "the archive holds no source of a kernel" >&2; exit 1; }

if [ -e /in/config ]; then cp /in/config .config; else make -s "$base"; fi
chmod u+w .config
cat /in/options >> .config
make -s olddefconfig
lost=
while read -r line; do
    option=${line%%=*} && option=${option#\# } && option=${option%% *}
    case $line in
    \#*) grep -q "^$option=" .config && lost="$lost $option=n" ;;
    *) grep -qxF "$line" .config || lost="$lost $line" ;;
    esac || true
done < /in/options
[ -z "$lost" ] || {
    echo "the configuration did not keep$lost: what it depends on is off, or there is no such option" >&2
    exit 1
}

make -s -j"$(nproc)" all
release=$(make -s kernelrelease)
mkdir -p /out/made/boot "/out/made/lib/modules/$release"
if grep -q '^CONFIG_MODULES=y' .config; then
    make -s modules_install INSTALL_MOD_PATH=/out/made INSTALL_MOD_STRIP=1 DEPMOD=true
    rm -f "/out/made/lib/modules/$release/build" "/out/made/lib/modules/$release/source"
    headers=usr/src/linux-headers-$release
    mkdir -p "/out/made/$headers"
    make -s run-command KBUILD_RUN_COMMAND="sh scripts/package/install-extmod-build /out/made/$headers"
    cp Module.symvers "/out/made/$headers/"
    ln -s "../../../$headers" "/out/made/lib/modules/$release/build"
fi
cp "$(make -s image_name)" "/out/made/boot/vmlinuz-$release"
cp .config "/out/made/boot/config-$release"
cp System.map "/out/made/boot/System.map-$release"
tar -c -f /out/kernel.tar -C /out/made --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" .
