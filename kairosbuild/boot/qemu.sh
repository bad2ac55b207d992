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
seen=0
end=$(($(date +%s) + SECONDS_MAX))
while [ -z "$verdict" ]; do
    sleep 0.2
    alive=yes
    kill -0 $machine 2>/dev/null || alive=
    size=$(stat -c %s $serial)
    if [ "$size" -gt "$seen" ]; then
        seen=$size
        plain > /tmp/console
        if [ "$(grep -ac 'Linux version ' /tmp/console)" -gt 1 ]; then
            verdict=restarted
        elif grep -aqE "$FAILURE" /tmp/console; then
            verdict=failed
        elif grep -aqE "$EXPECT" /tmp/console; then
            verdict=reached
        fi
    elif [ -z "$alive" ]; then
        verdict=stopped
    fi
    if [ -z "$verdict" ] && [ "$(date +%s)" -gt $end ]; then
        verdict=timeout
    fi
done
if [ $verdict = failed ]; then # what follows says whether the machine restarts or goes on
    waited=0
    while kill -0 $machine 2>/dev/null && [ $waited -lt 60 ]; do
        sleep 0.5
        waited=$((waited + 1))
    done
fi
kill $machine 2>/dev/null || true
wait $machine 2>/dev/null || true
trap - EXIT
echo $verdict > /out/verdict
plain
