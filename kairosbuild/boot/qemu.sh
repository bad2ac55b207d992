# Starts the machine that the arguments describe and watches its serial console until what is expected has
# shown, something went wrong, or time is over. Leaves in /out: verdict (one word), serial, guest (what the
# checks inside wrote) and screen (PNG); prints the console. The environment says the rest: EXPECT and FAILURE,
# extended regular expressions of a line, EXPECT_WHOLE, one of the whole console as a line, or nothing;
# SECONDS_MAX, GUEST (the checks inside have to end too), TPM. AGAIN counts, for itself, how often it began anew.
serial=/out/serial
: > $serial
: > /out/guest
vars=/usr/share/OVMF/OVMF_VARS_4M.fd
[ ! -e /in/vars ] || vars=/in/vars
cp $vars /tmp/vars
chmod 0600 /tmp/vars
mkdir -p /tmp/disk # QEMU takes TMPDIR=/tmp for /var/tmp, which cannot be written here
mkfifo /tmp/monitor.in /tmp/monitor.out

if [ -n "$TPM" ]; then
    mkdir /tmp/tpm
    swtpm socket --tpm2 --tpmstate dir=/tmp/tpm --ctrl type=unixio,path=/tmp/tpm.sock --daemon
fi
[ ! -e /in/www ] || [ -n "$AGAIN" ] || busybox httpd -p 127.0.0.1:8080 -h /in/www

TMPDIR=/tmp/disk qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -vga std \
    -chardev pipe,id=monitor,path=/tmp/monitor -mon chardev=monitor,mode=readline \
    -serial file:$serial -serial file:/out/guest -device virtio-rng-pci "$@" &
machine=$!
trap 'kill -KILL $machine 2>/dev/null' EXIT
exec 3<> /tmp/monitor.in 4<> /tmp/monitor.out

# Without what a terminal takes for commands: colours, cursor movements, titles.
plain() {
    LC_ALL=C sed -E 's#\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*\x07?|[ -/]*[0-~])##g' < $serial | tr -d '\000-\010\013-\037'
}

screenshot() {
    echo "screendump /out/screen -f png" >&3
    tries=0
    until [ -s /out/screen ] || [ $tries -gt 25 ]; do
        sleep 0.2
        tries=$((tries + 1))
    done
    sleep 0.3 # it is written at once, and slowly where the processor is busy
}

verdict=
reached=
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
            reached=yes
        elif [ -n "$EXPECT_WHOLE" ] && tr '\n' ' ' < /tmp/console | grep -aqE "$EXPECT_WHOLE"; then
            reached=yes
        fi
    elif [ -z "$alive" ]; then
        verdict=stopped
    fi
    if [ -n "$reached" ] && [ -z "$verdict" ]; then
        if [ -z "$GUEST" ] || grep -aq '^end$' /out/guest; then
            verdict=reached
        fi
    fi
    if [ -z "$verdict" ] && [ "$(date +%s)" -gt $end ]; then
        verdict=timeout
        [ -z "$reached" ] || verdict=silent
    fi
done
[ -z "$alive" ] || screenshot
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
# An emulator that other work keeps from the processor ticks too late for the kernel, which takes the timer for
# broken: nothing that the artifact could do about it.
if [ $verdict = failed ] && [ "$AGAIN" != xxx ] && grep -aqF "IO-APIC + timer doesn't work" $serial; then
    exec 3>&- 4>&-
    rm -rf /tmp/monitor.in /tmp/monitor.out /tmp/tpm /tmp/tpm.sock /out/screen
    AGAIN=${AGAIN}x exec /bin/sh -eu "$0" "$@"
fi
[ -e /out/screen ] || : > /out/screen
echo $verdict > /out/verdict
plain
