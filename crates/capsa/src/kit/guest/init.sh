#!/bin/busybox sh
# The first process of a guest that runs on Capsa's kit.
#
# With root= on the kernel line it mounts that disk and hands over to the init there; without, it
# gives a shell on the console and powers off when the shell ends. Every process that it starts
# costs some 10 ms under emulation, so it starts few: the shell's own commands do what they can.

export PATH=/sbin:/bin:/usr/sbin:/usr/bin HOME=/root TERM=vt102

# Ends in a kernel panic, as the kernel itself does when it has no root: the host must not take
# this for a guest that did its work and powered off. The reason goes through the kernel's log, so
# that it stands beside the panic, and is shown on a quiet console too.
die() {
    echo "<0>capsa: $*" > /dev/kmsg
    exit 1
}

warn() {
    echo "capsa: $*" >&2
}

root= rootfstype= rootflags= mode=rw init= shares=

# One word of the kernel line.
argument() {
    case $1 in
        root=*) root=${1#*=} ;;
        rootfstype=*) rootfstype=${1#*=} ;;
        rootflags=*) rootflags=${1#*=} ;;
        ro | rw) mode=$1 ;;
        init=*) init=${1#*=} ;;
        capsa.term=*) TERM=${1#*=} ;;
        # A newline cannot be in a kernel line, so it separates what can hold spaces.
        systemd.mount-extra=* | systemd.mount_extra=*) shares="$shares${1#*=}
" ;;
    esac
}

# Splits the kernel line as the kernel does: at spaces, but not between double quotes. What
# follows -- is for init; the kernel has passed it to us already.
read_kernel_line() {
    set -f
    local line part word= quoted=false IFS='"'
    read -r line < /proc/cmdline
    for part in $line; do
        if $quoted; then
            word=$word$part quoted=false
            continue
        fi
        quoted=true
        while :; do
            case $part in
                *' '*)
                    word=$word${part%%' '*} part=${part#*' '}
                    [ "$word" = -- ] && return
                    argument "$word"
                    word=
                    ;;
                *)
                    word=$word$part
                    break
                    ;;
            esac
        done
    done
    argument "$word"
}

# The modules for the devices that are there, by what the devices say they are; twice, as virtio_pci
# brings forth the virtio devices, and button its input device. The kernel loads those for file
# systems when they are mounted.
load_modules() {
    set +f
    local file alias found
    for pass in 1 2; do
        found=
        for file in /sys/bus/acpi/devices/*/modalias /sys/bus/pci/devices/*/modalias \
            /sys/bus/virtio/devices/*/modalias /sys/class/input/*/modalias; do
            read -r alias < "$file" && found="$found $alias"
        done 2> /dev/null
        set -f
        modprobe -qa $found 2> /dev/null
        set +f
    done
    set -f
}

# WHAT:WHERE:FSTYPE:OPTIONS, mounted below $1.
mount_shares() {
    local entry what where type options IFS='
'
    for entry in $shares; do
        what=${entry%%:*} entry=${entry#*:}
        where=${entry%%:*} entry=${entry#*:}
        type=${entry%%:*} options=
        case $entry in *:*) options=${entry#*:} ;; esac
        mkdir -p "$1$where" &&
            mount -t "$type" ${options:+-o"$options"} "$what" "$1$where" ||
            warn "cannot mount the share $what at $where"
    done
}

# Waits for the disk: its driver may still be at work.
find_root() {
    local tries=0
    while :; do
        case $root in
            LABEL=* | UUID=*) disk=$(findfs "$root" 2> /dev/null) && return ;;
            /dev/*) disk=$root && [ -b "$disk" ] && return ;;
            *) die "root=$root: only a path below /dev, LABEL= and UUID= are understood" ;;
        esac
        tries=$((tries + 1))
        [ $tries -le 100 ] || die "root=$root: there is no such disk after 10 seconds"
        usleep 100000
    done
}

boot_disk() {
    find_root
    mount -o "$mode${rootflags:+,$rootflags}" ${rootfstype:+-t "$rootfstype"} "$disk" /sysroot ||
        die "root=$root: cannot mount $disk ($mode${rootfstype:+, $rootfstype})"
    mount_shares /sysroot
    [ -n "$init" ] || init=/sbin/init
    # A link may lead to a path that exists only once /sysroot is the root.
    [ -x "/sysroot$init" ] || [ -L "/sysroot$init" ] ||
        die "root=$root: there is no program $init on $disk"
    for dir in proc sys dev run; do
        mount -o move "/$dir" "/sysroot/$dir" 2> /dev/null || umount -l "/$dir"
    done
    exec switch_root /sysroot "$init" "$@"
    die "root=$root: cannot run $init"
}

shell() {
    /bin/busybox --install -s
    # The standard names of these requests' signals, as busybox's own poweroff and reboot send
    # them to the first process.
    trap 'sync; poweroff -f' USR1 USR2
    trap 'sync; reboot -f' TERM
    mkdir /dev/pts
    mount -t devpts -o nosuid,noexec,mode=0620,ptmxmode=0666 devpts /dev/pts
    acpid -l /run/acpid.log -p /run/acpid.pid
    ip link set lo up
    # It goes on in the background when nobody answers within three seconds.
    [ ! -d /sys/class/net/eth0 ] || udhcpc -b -t 3 -T 1 -i eth0 -s /etc/udhcpc 2> /dev/null
    mount_shares ''
    cd
    # In the background and waited for, as a trap only runs when no child holds the shell up.
    # cttyhack opens the console and makes it the controlling terminal. What a shell runs in the
    # background ignores SIGINT for good; login undoes that, so that Ctrl-C works. It reports to
    # syslogd, else on the console.
    syslogd -C
    setsid cttyhack login -pf root < /dev/console > /dev/console 2>&1 &
    wait $!
    sync
    poweroff -f
}

mount -t proc proc /proc
read_kernel_line
mount -a
echo capsa > /proc/sys/kernel/hostname
load_modules
if [ -n "$root" ]; then
    boot_disk "$@"
else
    shell
fi
