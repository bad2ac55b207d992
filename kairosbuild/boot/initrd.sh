#!/bin/busybox sh
# The first program of every machine: makes the layers the root and hands over. It reads these
# arguments of the kernel's command line:
#   kbuild.layers=ROOTHASH:HASHOFFSET,...   top to base; files of that name in the layers filesystem
#   kbuild.disk=LABEL=... | UUID=... | /dev/...   where that filesystem is (ext4, or an ISO's);
#              | memory | http://...              or that they are beside this program, or to be fetched
#   kbuild.cut=PLACE:COUNT,...   a place (etc, var, ...) that comes from the topmost COUNT layers only
#   kbuild.keep=PLACE,...   places whose changes are kept, on the persistent filesystem
#   kbuild.bind=PATH,...   folders that are plain folders of the persistent filesystem
#   kbuild.persistent=LABEL=...   where that filesystem is
#   kbuild.encrypt=...   that it is encrypted, and how (encrypted.sh)
#   kbuild.recovery   this is the entry of last resort, and its layers are its own
# Whatever fails says why and restarts the machine, so that the boot loader's next entry has its turn.
# Inside an initrd that another program made (boot/dracut.sh) KBUILD_PATH is set, and mounts and the end are that one's.
export PATH=${KBUILD_PATH:-/bin:/sbin}
K=/run/kbuild
PLACES="etc var home root opt srv"

say() { echo "kbuild: $*" > /dev/kmsg; }

fail() {
    say "FAILED: $*"
    if [ -n "$MOUNTED" ] && [ -z "$RECOVERY" ]; then # for the system that has its turn after this one
        mount -o remount,rw $K/disk && printf '%s\n' "$LAYERS" "$*" > $K/disk/failure && mount -o remount,ro $K/disk
    fi
    say "this machine cannot start from these layers; it restarts"
    sleep 2
    reboot -f
    sleep 60
}

if [ -z "$KBUILD_PATH" ]; then
    mount -t devtmpfs -o mode=0755,nosuid devtmpfs /dev
    mount -t proc -o nosuid,noexec,nodev proc /proc
    mount -t sysfs -o nosuid,noexec,nodev sysfs /sys
    mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run
fi
echo 5 > /proc/sys/kernel/panic

LAYERS= DISK=LABEL=kbuild-layers CUT= KEEP= BIND= PERSISTENT=LABEL=kbuild-state ENCRYPT= RECOVERY= MOUNTED= LAYERS_ON=
for argument in $(cat /proc/cmdline); do
    case $argument in
    kbuild.layers=*) LAYERS=${argument#*=} ;;
    kbuild.disk=*) DISK=${argument#*=} ;;
    kbuild.cut=*) CUT=${argument#*=} ;;
    kbuild.keep=*) KEEP=${argument#*=} ;;
    kbuild.bind=*) BIND=${argument#*=} ;;
    kbuild.persistent=*) PERSISTENT=${argument#*=} ;;
    kbuild.encrypt=*) ENCRYPT=${argument#*=} ;;
    kbuild.recovery) RECOVERY=yes ;;
    esac
done
[ -n "$LAYERS" ] || fail "the kernel command line has no kbuild.layers"

modprobe -qa $(cat /etc/modules)
[ ! -d /sys/firmware/efi ] || modprobe -qa efivarfs # for an image that has nothing that loads modules

coldplug() { # load what the devices that are there ask for
    grep -hE '^(virtio|scsi|usb|vmbus|vmd|mmc|xen):|^pci:.*bc(01|02|08|0C|06sc01)|^platform:(iTCO|wdat)' /sys/bus/*/devices/*/modalias | sort -u > /run/devices
    cmp -s /run/devices /run/devices.seen && return
    xargs modprobe -qa < /run/devices 2>/dev/null
    mv /run/devices /run/devices.seen
}

# From here on a hang restarts the machine as a panic does: the watchdog is fed by what gets on, and given to the system
# at the end. Without one in hardware the kernel's own notices a hang of programs, not one of the kernel.
WATCHDOG=
alive() { [ -z "$WATCHDOG" ] || echo >&9; }

watch_over() {
    coldplug
    coldplug # what the first one loaded may have found more: a chipset's watchdog is a part of another device
    [ -c /dev/watchdog0 ] || modprobe -qa softdog
    [ -c /dev/watchdog0 ] && command exec 9> /dev/watchdog0 || return 0
    WATCHDOG=$(cat /sys/class/watchdog/watchdog0/identity)
    say "watched over by $WATCHDOG"
}
watch_over

while_alive() { # while_alive COMMAND...: one that may take its time, and comes to an end by itself
    (while :; do
        alive
        sleep 5 9>&-
    done) &
    feeding=$!
    "$@"
    ended=$?
    kill $feeding
    wait $feeding 2>/dev/null
    return $ended
}

give_watchdog() { # to who feeds it from now on: systemd as the agent's configuration tells it, the agent's service of OpenRC
    [ -n "$WATCHDOG" ] || return 0
    alive
    if ! { [ -x /sysroot/usr/lib/systemd/systemd ] && [ -e /sysroot/usr/lib/systemd/system.conf.d/50-kbuild.conf ]; } &&
        ! { [ -x /sysroot/sbin/openrc ] && [ -e /sysroot/etc/init.d/kbuild-watchdog ]; }; then
        echo V >&9 # nobody: closing it stops it
    fi
    exec 9>&-
}

hook() { # hook WHEN: the scripts that an initrd node added
    for script in /hooks/$1/*; do
        alive
        [ ! -e "$script" ] || sh "$script" 9>&- || fail "the hook $script ended with status $?"
    done
}
hook start

partition() { # partition NAME: the one of this name on the disk that has the layers
    (
        cd -P "/sys/class/block/${LAYERS_ON##*/}/.." 2>/dev/null || exit 0
        for one in */partition; do
            ! grep -qsx "PARTNAME=$1" "${one%/*}/uevent" || echo "/dev/${one%/*}"
        done
    )
}

is_luks() { [ "$(od -An -v -N6 -tx1 "$1" 2>/dev/null | tr -d ' \n')" = 4c554b53babe ]; }

find_disk() { # find_disk WHERE: prints the device, once it is there
    case $1 in
    *=*) findfs "$1" 2>/dev/null ;;
    *) [ -b "$1" ] && echo "$1" ;;
    esac
}

mkdir -p $K/disk $K/layer $K/none /sysroot

from_disk() { # the filesystem that has the layers, at $K/disk
    tries=0
    until device=$(find_disk "$DISK") && [ -n "$device" ]; do
        [ $tries -lt 100 ] || fail "no disk has the filesystem $DISK after 20 seconds"
        [ $((tries % 5)) -ne 0 ] || coldplug
        alive
        tries=$((tries + 1))
        sleep 0.2
    done
    modprobe -qa isofs
    mount -t ext4 -o ro,nosuid,nodev "$device" $K/disk 2>/dev/null && MOUNTED=yes ||
        mount -t iso9660 -o ro,nosuid,nodev "$device" $K/disk ||
        fail "the filesystem $DISK on $device cannot be mounted"
    [ ! -d $K/disk/layers ] || STORE=$K/disk/layers
    LAYERS_ON=$device
}

lease() { # an address for one of the network interfaces
    for interface in $(ls /sys/class/net); do
        [ "$interface" != lo ] || continue
        ip link set "$interface" up
        alive
        udhcpc -i "$interface" -n -q -t 3 -T 2 -s /bin/lease 9>&- && return
    done
    return 1
}

from_network() { # the layers out of an HTTP server, into memory; dm-verity says whether they are the right ones
    modprobe -qa af_packet
    tries=0
    until lease; do
        [ $tries -lt 20 ] || fail "no network interface gets an address"
        coldplug
        tries=$((tries + 1))
        sleep 0.5
    done
    mount -t tmpfs -o size=90%,mode=0755,nosuid,nodev tmpfs $K/disk
    for layer in $(echo "$LAYERS" | tr , ' '); do
        say "fetching ${layer%:*}"
        tries=0
        until while_alive wget -q -T 30 -O "$K/disk/${layer%:*}" "${DISK%/}/${layer%:*}"; do
            tries=$((tries + 1))
            [ $tries -lt 3 ] || fail "layer ${layer%:*} cannot be fetched from $DISK"
            sleep 1
        done
    done
}

STORE=$K/disk
case $DISK in
memory) STORE=/layers ;;
http://*) from_network ;;
*://*) fail "layers are fetched by http:// only, not from $DISK" ;;
*) from_disk ;;
esac

# Which drives have the machine's configuration, for who reads them: nobody there needs udev for it, or has to wait.
for label in cidata CIDATA kbuild-config KBUILD-CONFIG; do
    find_disk "LABEL=$label"
done > $K/config-drives

open_layer() { # open_layer NUMBER ROOTHASH HASHOFFSET
    alive
    file=$STORE/$2
    [ -f "$file" ] || fail "layer $2 is not on ${device:-$DISK}"
    [ "$(stat -c %s "$file")" -gt "$3" ] || fail "layer $2 is cut short"
    losetup -r /dev/loop$1 "$file" || fail "layer $2 has no loop device"
    blocks=$(($3 / 4096))
    dmsetup create --readonly --noudevsync --noudevrules "kbuild-$1" -u "CRYPT-VERITY-$2-kbuild-$1" --table \
        "0 $((blocks * 8)) verity 1 /dev/loop$1 /dev/loop$1 4096 4096 $blocks $((blocks + 1)) sha256 $2 - 1 restart_on_corruption" \
        >/dev/null || fail "layer $2 cannot be opened with dm-verity"
    mkdir -p $K/layer/$1
    mount -t erofs -o ro,nodev /dev/$(ls /sys/block/loop$1/holders) $K/layer/$1 || fail "layer $2 cannot be mounted"
}

number=0
LOWER=
for layer in $(echo "$LAYERS" | tr , ' '); do
    open_layer $number ${layer%:*} ${layer#*:}
    LOWER=$LOWER${LOWER:+:}$K/layer/$number
    number=$((number + 1))
done
dmsetup table > $K/verity # for whoever asks on the running machine
[ $number -gt 1 ] || LOWER=$LOWER:$K/none
mount -t overlay -o ro,lowerdir=$LOWER kbuild /sysroot || fail "the $number layers do not make a root"

# Writable places are overlays of the layers' own folders, not of the root above them: the kernel stacks
# overlays two deep, and containers need the second.
writable() { # writable PLACE: from its own folders in the layers, with a tmpfs to write to
    [ -d /sysroot/$1 ] && [ ! -L /sysroot/$1 ] || return 0
    count=$number
    for cut in $(echo "$CUT" | tr , ' '); do
        [ "${cut%:*}" != "$1" ] || count=${cut#*:}
    done
    lower=
    i=0
    while [ $i -lt $count ]; do
        [ ! -d $K/layer/$i/$1 ] || [ -L $K/layer/$i/$1 ] || lower=$lower${lower:+:}$K/layer/$i/$1
        i=$((i + 1))
    done
    write=$K/write/$1
    case ,$KEPT, in *,$1,*) write=$K/persistent/overlay/$1 ;; esac
    if [ ! -d $write/upper ]; then # what is kept has modes of its own by now
        mkdir -p $write/new $write/work
        chmod "$(stat -c %a /sysroot/$1)" $write/new
        chown "$(stat -c %u:%g /sysroot/$1)" $write/new
        mv $write/new $write/upper
    fi
    mount -t overlay -o lowerdir=$lower,upperdir=$write/upper,workdir=$write/work kbuild-$1 /sysroot/$1 ||
        fail "/$1 cannot be made writable"
}

bind() { # bind PATH: a plain folder of the persistent filesystem; at first with what the image has there
    folder=$K/persistent/bind/$1
    if [ ! -d $folder ]; then
        rm -rf $folder.new
        mkdir -p ${folder%/*} /sysroot/$1
        while_alive cp -a /sysroot/$1 $folder.new && mv $folder.new $folder
    fi
    mkdir -p /sysroot/$1
    mount --bind $folder /sysroot/$1 || fail "/$1 cannot be bound to the persistent filesystem"
}

# A machine without its persistent filesystem starts all the same: another image would find it no better. Not so where it
# is there and encrypted: an image that cannot open it gives its turn to one that can.
KEPT=
if [ -n "$KEEP$BIND" ]; then
    mkdir -p $K/persistent
    if [ -n "$ENCRYPT" ]; then
        [ -f /bin/encrypted ] || fail "this initrd has nothing to open an encrypted filesystem with"
        . /bin/encrypted
    elif encrypted=$(partition persistent) && [ -n "$encrypted" ] && is_luks "$encrypted"; then
        fail "the persistent filesystem is encrypted, and this image does not open it"
    fi
    if device=$(find_disk "$PERSISTENT") && mount -t ext4 -o rw,nodev "$device" $K/persistent; then
        KEPT=$KEEP
        if [ -f $K/persistent/reset ]; then
            say "the places $(tr '\n' ' ' < $K/persistent/reset)are as the image has them again"
            for place in $(cat $K/persistent/reset); do
                while_alive rm -rf $K/persistent/overlay/$place $K/persistent/bind/$place
            done
            rm -rf $K/persistent/configured $K/persistent/reset
        fi
    else
        say "WARNING: there is no filesystem $PERSISTENT; nothing will be kept"
        BIND=
    fi
fi

mkdir -p $K/write
mount -t tmpfs -o mode=0755,nodev tmpfs $K/write
for place in $PLACES; do
    writable $place
done
for path in $(echo "$BIND" | tr , ' '); do
    bind "$path"
done

hook root

# A machine that an emulator tests: what it hands over is run once the system is up. Whoever can do that owns the
# machine's memory anyway; all the same not under Secure Boot, where what runs was signed. It is a string of the
# SMBIOS tables, which every kernel shows: not all have a module for QEMU's own device.
hand_over_test() {
    grep -qs QEMU /sys/class/dmi/id/sys_vendor || return 0
    handed=$(tr -c 'a-zA-Z0-9+/=.' '\n' < /sys/firmware/dmi/tables/DMI | grep '^kbuild\.test=')
    [ -n "$handed" ] || return 0
    modprobe -qa efivarfs
    mount -t efivarfs -o ro efivarfs /sys/firmware/efi/efivars 2>/dev/null
    if [ "$(tail -c 1 /sys/firmware/efi/efivars/SecureBoot-* 2>/dev/null | od -An -tu1 | tr -d ' ')" = 1 ]; then
        say "Secure Boot is on: the emulator's test is not run"
    else
        echo "${handed#kbuild.test=}" | busybox base64 -d > $K/test
        if [ -x /sysroot/usr/lib/systemd/systemd ] || [ -x /sysroot/lib/systemd/systemd ]; then
            mkdir -p /run/systemd/system/multi-user.target.wants
            printf '[Unit]\nDefaultDependencies=no\nAfter=multi-user.target\n[Service]\nExecStart=/bin/sh %s\n' \
                $K/test > /run/systemd/system/kbuild-test.service
            ln -s ../kbuild-test.service /run/systemd/system/multi-user.target.wants/
        elif grep -qs '^::' /sysroot/etc/inittab; then # busybox's init
            echo "::once:/bin/sh $K/test" >> /sysroot/etc/inittab
        elif [ -f /sysroot/etc/inittab ]; then
            echo "kbtest:2345:once:/bin/sh $K/test" >> /sysroot/etc/inittab
        fi
    fi
    umount /sys/firmware/efi/efivars 2>/dev/null
}
hand_over_test

INIT=
for candidate in /sbin/init /usr/lib/systemd/systemd /usr/sbin/init /etc/init /bin/init; do
    if [ -z "$INIT" ] && { [ -x /sysroot$candidate ] || [ -L /sysroot$candidate ]; }; then INIT=$candidate; fi
done
[ -n "$INIT" ] || fail "the image has no init"
say "root is $number verified layers, read-only; starting $INIT"
give_watchdog
[ -z "$KBUILD_PATH" ] || exit 0
for mount in proc sys dev run; do
    [ -d /sysroot/$mount ] || fail "the image has no folder /$mount"
    mount --move /$mount /sysroot/$mount
done
exec switch_root /sysroot $INIT
