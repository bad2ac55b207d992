# Builds /in/Dockerfile over the images of the layout /in/images and packs the result as /out/image.tar.
# Arguments: the blobs (hex) that the result need not hold again, a lone `--`, then arguments of `buildah build`.
# The environment says how many images there are: IMAGES.
#
# buildah mounts, for which the sandbox gives no capability. So it gets a user namespace of its own, in
# which the same owners exist: there it may mount, and whatever the sandbox mounted stays as it is, flags and all.
set -eu
echo root:x:0:0::/root:/bin/sh > /etc/passwd
echo root:x:0: > /etc/group
mkfifo -m 0666 /tmp/entered /tmp/mapped

cat > /tmp/inside <<'INSIDE'
set -eu
echo > /tmp/entered
read -r _ < /tmp/mapped
# A root of its own: buildah changes the flags of `/`, and those of the sandbox's are locked here.
mkdir /tmp/root
mount -t tmpfs -o mode=0755 tmpfs /tmp/root
cd /tmp/root
for name in usr etc in out proc dev run sys var tmp; do
    mkdir $name
    mount --rbind /$name $name
done
for name in bin sbin lib lib64; do [ ! -e /$name ] || ln -s usr/$name $name; done
mkdir old root
pivot_root . old
umount -l /old
cd /
mkdir -p /out/storage /out/tmp /out/context /out/image/blobs/sha256 /tmp/run
export TMPDIR=/out/tmp XDG_RUNTIME_DIR=/tmp/run
tar -x -f /in/context.tar -C /out/context
while [ "$1" != -- ]; do
    ln -s "/in/images/blobs/sha256/$1" "/out/image/blobs/sha256/$1"
    shift
done
shift
run() { verb=$1; shift; buildah --root /out/storage --runroot /tmp/run --storage-driver overlay "$verb" --signature-policy /in/policy.json "$@"; }
number=0
while [ $number -lt "$IMAGES" ]; do
    image=$(run pull --quiet oci:/in/images:$number)
    buildah --root /out/storage --runroot /tmp/run --storage-driver overlay tag "$image" localhost/kbuild-$number
    number=$((number + 1))
done
# What runs a step copies itself into sealed memory first; while the kernel looks at that memory, sealing is refused.
tries=1
until run build "$@" --file /in/Dockerfile --tag localhost/kbuild-result /out/context 2> /tmp/errors; do
    cat /tmp/errors >&2
    case "$tries $(cat /tmp/errors)" in
    [12]*"sealing memfd copy: Device or resource busy"*) tries=$((tries + 1)) ;;
    *) exit 1 ;;
    esac
done
cat /tmp/errors >&2
run push --quiet --disable-compression localhost/kbuild-result oci:/out/image:result
find /out/image -type l -delete
tar -c -f /out/image.tar -C /out/image .
rm -rf /out/storage /out/tmp /out/context /out/image
INSIDE

unshare --user --mount --propagation private --keep-caps sh /tmp/inside "$@" &
inside=$!
read -r _ < /tmp/entered
for map in uid_map gid_map; do
    # The same owners, in the same pieces: the kernel maps no range over two of the namespace around it.
    owners=$(while read -r first _ count; do echo "$first $first $count"; done < /proc/self/$map)
    if ! { [ "$owners" != "0 0 1" ] && echo "$owners" > /proc/$inside/$map; } 2>/dev/null; then
        echo "buildah needs every owner, and here is only one: build as root, or with subordinate ids (uidmap)" >&2
        kill $inside
        exit 1
    fi
done
echo > /tmp/mapped
wait $inside
