# Compiles modules against the headers in the root. Leaves /out/modules.tar: NAME.ko, one beside the other.
#   modules.sh sources RELEASE FOLDER [VARIABLE=VALUE...]   what is in /in/source, by its kbuild Makefile
#   modules.sh dkms RELEASE MACHINE                         what is in /usr/src with a dkms.conf
# A symbol that the kernel does not have is a warning here: who compares it with the kernel says it better.
how=$1 release=$2
export KBUILD_MODPOST_WARN=1 KBUILD_BUILD_USER=kbuild KBUILD_BUILD_HOST=kbuild
export KBUILD_BUILD_TIMESTAMP="@$SOURCE_DATE_EPOCH"
headers=/usr/lib/modules/$release/build
mkdir /out/work /out/made /tmp/bin
[ ! -x /usr/bin/mawk ] || ln -s /usr/bin/mawk /tmp/bin/awk # which awk it is, a package script would have chosen
export PATH=/tmp/bin:$PATH

from_sources() {
    folder=$1
    shift
    if [ -d /in/source ]; then
        cp -rL /in/source/. /out/work
        chmod -R u+w /out/work
    else
        tar -x -f /in/source -C /out/work --no-same-owner
    fi
    top=/out/work
    if [ ! -d "$top/$folder" ] || { [ -z "$folder" ] && [ ! -e $top/Makefile ] && [ ! -e $top/Kbuild ]; }; then
        inner=$(ls /out/work) # an archive of one folder, as releases are
        [ "$(echo "$inner" | wc -l)" -eq 1 ] && [ -d "$top/$inner/$folder" ] && top=$top/$inner
    fi
    [ -e "$top/$folder/Makefile" ] || [ -e "$top/$folder/Kbuild" ] || {
        echo "there is no Makefile in ${folder:-the source}" >&2
        exit 1
    }
    make -C "$headers" M="$top/$folder" "$@" modules
    find "$top/$folder" -name '*.ko' -exec cp {} /out/made \;
}

from_dkms() {
    for conf in /usr/src/*/dkms.conf; do
        [ -e "$conf" ] || { echo "the packages hold no dkms.conf" >&2; exit 1; }
        module=$(value "$conf" PACKAGE_NAME) version=$(value "$conf" PACKAGE_VERSION)
        dkms build -m "$module" -v "$version" -k "$release" -a "$1" \
            --dkmstree /out/work --kernelsourcedir "$headers" || {
            cat "/out/work/$module/$version/build/make.log" >&2 2>/dev/null
            exit 1
        }
        find "/out/work/$module/$version/$release" -name '*.ko' -exec cp {} /out/made \;
    done
}

value() { # value CONF NAME: as the shell that dkms is written in reads it
    kernelver=$release bash -c '. "$1" >/dev/null 2>&1; echo "${!2}"' bash "$1" "$2"
}

case $how in
sources) shift 2 && from_sources "$@" ;;
dkms) from_dkms "$3" ;;
esac
[ -n "$(ls /out/made)" ] || { echo "nothing was compiled: there is no .ko" >&2; exit 1; }
strip=$(command -v strip || ls /usr/bin/*-linux-gnu*-strip | head -n 1) # of a compiler for this machine only
"$strip" --strip-debug /out/made/*.ko
tar -c -f /out/modules.tar -C /out/made .
