# Boots /in/disk and watches its serial console until what is expected has shown, something went wrong, or
# time is over. Leaves /out/verdict (one word) and /out/serial; prints the console. The environment says the rest:
# FORMAT, EXPECT and FAILURE (extended regular expressions), SECONDS_MAX, MEMORY, CPUS, ACCEL, CPU.
serial=/out/serial
: > $serial
cp /usr/share/OVMF/OVMF_VARS_4M.fd /tmp/vars
chmod 0600 /tmp/vars
mkdir /tmp/disk  # QEMU takes TMPDIR=/tmp for /var/tmp, which cannot be written here

TMPDIR=/tmp/disk qemu-system-x86_64 -machine q35 -accel "$ACCEL" -cpu "$CPU" -smp "$CPUS" -m "$MEMORY" \
    -nodefaults -no-user-config -display none -no-reboot -nic none -serial file:$serial \
    -drive if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd \
    -drive if=pflash,format=raw,unit=1,file=/tmp/vars \
    -drive if=none,id=disk,format="$FORMAT",snapshot=on,file=/in/disk \
    -device virtio-blk-pci,drive=disk -device virtio-rng-pci &
machine=$!
trap 'kill -KILL $machine 2>/dev/null' EXIT

plain() { tr -d '\r\033' < $serial | sed 's/\[[0-9;?]*[A-Za-z]//g'; }

verdict=
waited=0
while [ -z "$verdict" ]; do
    sleep 0.2
    waited=$((waited + 1))
    alive=yes
    kill -0 $machine 2>/dev/null || alive=
    if plain | grep -aqE "$FAILURE"; then
        verdict=failed
        sleep 1
    elif [ "$(grep -ac 'Linux version ' $serial)" -gt 1 ]; then
        verdict=restarted
    elif plain | grep -aqE "$EXPECT"; then
        verdict=reached
    elif [ -z "$alive" ]; then
        verdict=stopped
    elif [ $waited -gt $((SECONDS_MAX * 5)) ]; then
        verdict=timeout
    fi
done
kill $machine 2>/dev/null
wait $machine 2>/dev/null
trap - EXIT
echo $verdict > /out/verdict
plain
