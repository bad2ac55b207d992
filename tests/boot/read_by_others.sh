# What other vendors' programs say of every artifact: each check prints a line, and the first that fails ends it.
# /in has the artifacts by the names of their nodes; $1 is the erofs' root hash and $2 where its hash tree begins.
export LC_ALL=C
say() { echo "$*" >> /out/report; }
quietly() { "$@" > /tmp/said 2>&1 || { cat /tmp/said >&2; exit 1; }; }

# -- disks: the table, each filesystem, each layer --
disk=/in/raw/disk
sgdisk -v $disk > /tmp/said
grep -q 'No problems found' /tmp/said || { cat /tmp/said >&2; exit 1; }
say sgdisk: no problems
part() {
    sgdisk -i "$1" $disk > /tmp/said
    first=$(sed -n 's/^First sector: \([0-9]*\).*/\1/p' /tmp/said)
    size=$(sed -n 's/^Partition size: \([0-9]*\) sectors.*/\1/p' /tmp/said)
    dd if=$disk of="$2" bs=512 skip="$first" count="$size" status=none
}
part 2 /tmp/esp
part 3 /tmp/fs
quietly fsck.fat -n /tmp/esp
say fsck.fat: clean
quietly e2fsck -fn /tmp/fs
say e2fsck: clean
mcopy -i /tmp/esp ::EFI/Linux/os-1+3.efi /tmp/os.efi
for layer in $(python3 /usr/bin/ukify inspect /tmp/os.efi --section .cmdline:text |
    sed -n 's/.*kbuild.layers=\([^ ]*\).*/\1/p' | tr , ' '); do
    offset=${layer#*:}
    quietly debugfs -R "dump ${layer%:*} /tmp/layer" /tmp/fs
    quietly veritysetup verify --hash-offset="$offset" /tmp/layer /tmp/layer "${layer%:*}"
    quietly fsck.erofs --extract /tmp/layer
    say veritysetup and fsck.erofs: a layer
done
for form in qcow2 vmdk vhd; do
    known=$form
    [ $form != vhd ] || known=vpc
    [ $form = vhd ] || quietly qemu-img check -f $known "/in/$form/disk"
    quietly qemu-img compare -f raw -F $known $disk "/in/$form/disk"
    say "qemu-img: $(qemu-img info -f $known "/in/$form/disk" | sed -n 's/^file format: //p'), the same disk"
done
tar -xzf /in/gce/disk -C /tmp
sgdisk -v /tmp/disk.raw | grep -q 'No problems found'
say "tar: $(tar -tzf /in/gce/disk), $(stat -c %s /tmp/disk.raw) bytes, no problems for sgdisk"
rm /tmp/disk.raw

# -- a unified kernel image --
python3 /usr/bin/ukify inspect /in/uki/uki --json=short > /out/inspected
say ukify: inspected

# -- the ISO: both ways to start it, its files, the EFI partition inside --
xorriso -no_rc -indev /in/iso/iso -report_el_torito plain -report_system_area plain > /out/iso 2>/tmp/said ||
    { cat /tmp/said >&2; exit 1; }
quietly xorriso -no_rc -indev /in/iso/iso -osirrox on -extract_boot_images /tmp/boot -extract /layers /tmp/onto
quietly fsck.fat -n /tmp/boot/gpt_part2_efi.img
for layer in /tmp/onto/*; do
    quietly debugfs -R "dump ${layer##*/} /tmp/layer" /tmp/fs
    cmp "$layer" /tmp/layer
    say xorriso: a layer as on the disk
done

# -- the merged tree --
quietly veritysetup verify --hash-offset="$2" /in/erofs /in/erofs "$1"
quietly fsck.erofs --extract /in/erofs
say fsck.erofs: clean
unsquashfs -lln /in/squashfs > /tmp/modes # a root that the tar only implies is nobody else's to write to
grep -q "^drwxr-xr-x 0/0 .* squashfs-root$" /tmp/modes
unsquashfs -cat /in/squashfs etc/os-release | grep -q '^ID=debian'
say unsquashfs: reads
tar -tf /in/tar | sed 's,^\./,,; s,/$,,; /^$/d' | sort > /tmp/tar
unsquashfs -l -d '' /in/squashfs | sed 's,^/,,; /^$/d' | sort > /tmp/squashfs
cmp /tmp/tar /tmp/squashfs
say tar: the same names
