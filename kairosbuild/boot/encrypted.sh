# A part of the first program (initrd.sh), in initrds of machines that encrypt: the persistent filesystem in LUKS2. It is made
# at the first start and opened at the others by the TPM, under a policy that the image's makers signed (PCR 11: which kernel
# image this is) and with what firmware had in $PCRS then. Sets PERSISTENT to what is to be mounted; what fails, fails the start.
#   kbuild.encrypt=RECOVERY:PCRS   print, keep or none; PCRs as 7+14
CRYPT=$(partition persistent)
MAPPED=/dev/mapper/kbuild-state
SIGNATURE=/.extra/tpm2-pcr-signature.json # systemd's stub puts both there
PUBLIC=/.extra/tpm2-pcr-public-key.pem
RECOVERY_KEY=${ENCRYPT%%:*} PCRS=${ENCRYPT#*:}
GIVEN=$K/disk/given # what was on it at first, where a power cut does not reach it
[ -n "$CRYPT" ] || fail "the disk has no partition named persistent to encrypt"
modprobe -qa dm-crypt xts algif_skcipher aesni-intel tpm_tis tpm_crb 2>/dev/null
mkdir -p /run/systemd /run/cryptsetup /tmp /var/tmp
cp /.extra/tpm2-pcr-* /run/systemd/ 2>/dev/null # where the running system looks for them

has_tpm() {
    tries=0
    until [ -c /dev/tpmrm0 ]; do
        [ $tries -lt 25 ] || return 1
        tries=$((tries + 1))
        sleep 0.2
    done
}

is_made() { # an encrypted filesystem that was made to its end
    is_luks "$CRYPT" && ! cryptsetup luksDump "$CRYPT" | grep -q '^Subsystem:.*kbuild-unfinished'
}

save_given() { # the files that an installation left there; refuses to encrypt over any other
    mkdir -p $K/old
    mount -t ext4 -o ro,nodev "$CRYPT" $K/old || return 0
    for file in $K/old/*; do
        case ${file##*/} in
        lost+found | '*' | *.yaml) ;;
        *) fail "the persistent filesystem is not encrypted and holds ${file##*/}: wipe its partition first" ;;
        esac
    done
    mount -o remount,rw $K/disk && rm -rf $GIVEN.new && mkdir -m 0700 $GIVEN.new || fail "the layers filesystem cannot be written"
    cp $K/old/*.yaml $GIVEN.new/ 2>/dev/null
    mv $GIVEN.new $GIVEN
    umount $K/old
    sync
}

make() {
    has_tpm || fail "the persistent filesystem is to be encrypted, and this machine has no TPM 2.0"
    [ -f $PUBLIC ] && [ -f $SIGNATURE ] || fail "the persistent filesystem is to be encrypted, and this kernel image has no signed policy"
    [ -d $GIVEN ] || save_given
    say "encrypting the persistent filesystem"
    key=$K/write-key
    (umask 077 && od -An -v -N64 -tx1 /dev/urandom | tr -d ' \n' > $key)
    cryptsetup luksFormat --batch-mode --type luks2 --label kbuild-crypt --subsystem kbuild-unfinished \
        --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file $key "$CRYPT" || fail "LUKS2 cannot be made on $CRYPT"
    systemd-cryptenroll --unlock-key-file=$key --tpm2-device=/dev/tpmrm0 --tpm2-pcrs="$PCRS" --tpm2-public-key=$PUBLIC \
        --tpm2-public-key-pcrs=11 --tpm2-signature=$SIGNATURE "$CRYPT" || fail "the TPM cannot be bound to $CRYPT"
    recovery=
    if [ "$RECOVERY_KEY" != none ]; then
        recovery=$(systemd-cryptenroll --unlock-key-file=$key --recovery-key "$CRYPT" 2>/dev/null) || fail "there is no recovery key"
    fi
    cryptsetup open --key-file $key "$CRYPT" kbuild-state && /bin/mke2fs -q -F -t ext4 -b 4096 -i 16384 -L kbuild-state $MAPPED &&
        mount -t ext4 -o rw,nodev $MAPPED $K/old || fail "the encrypted filesystem cannot be made"
    cp $GIVEN/*.yaml $K/old/ 2>/dev/null
    [ "$RECOVERY_KEY" != keep ] || (umask 077 && echo "$recovery" > $K/old/recovery-key)
    umount $K/old
    rm $key
    systemd-cryptenroll --wipe-slot=password "$CRYPT" && cryptsetup config --subsystem kbuild "$CRYPT" || fail "LUKS2 cannot be finished on $CRYPT"
    if [ "$RECOVERY_KEY" = print ]; then
        printf '\n  Recovery key of this machine, shown once:\n\n    %s\n\n' "$recovery" > /dev/console
    fi
    rm -rf $GIVEN
    sync
}

by_tpm() {
    has_tpm && [ -f $SIGNATURE ] || return 1
    SYSTEMD_CRYPTSETUP_USE_TOKEN_MODULE=0 systemd-cryptsetup attach kbuild-state "$CRYPT" - "luks,headless=1,tpm2-device=/dev/tpmrm0,tpm2-signature=$SIGNATURE"
}

by_person() {
    tries=0
    while [ $tries -lt 3 ]; do
        printf '\n  The TPM does not open the persistent filesystem of this machine to this image.\n  Recovery key (within 60 seconds): ' > /dev/console
        read -r -s -t 60 key < /dev/console || return 1
        printf %s "$key" | cryptsetup open --key-file=- "$CRYPT" kbuild-state && return
        tries=$((tries + 1))
    done
    return 1
}

if is_made; then
    rm -rf $GIVEN 2>/dev/null
    by_tpm || while_alive by_person || fail "the persistent filesystem cannot be unlocked: the TPM does not open it to this image"
else
    while_alive make
fi
PERSISTENT=$MAPPED
[ -z "$MOUNTED" ] || mount -o remount,ro $K/disk
