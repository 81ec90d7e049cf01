#!/bin/busybox sh
# The first process of a level-1 guest. Its root becomes the host's, as the host exports it, under
# a layer of memory: whatever is written goes there. Then the host's own script takes over.

# Ends in a kernel panic, which the host sees.
die() {
    echo "<0>level1: $*" > /dev/kmsg
    exit 1
}

/bin/busybox --install -s
export PATH=/sbin:/bin:/usr/sbin:/usr/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup /sys/fs/cgroup
modprobe -a virtio_pci virtio_console 9p 9pnet_virtio overlay ext4 \
    kvm_amd vhost_vsock vhost_net tun fuse || die "not every module loads"
ip link set lo up

# A disk of memory, which is taken when it is written to: three quarters at most. Not a tmpfs, which
# has neither user extended attributes nor O_DIRECT before Linux 6.6.
while read -r name size _; do
    [ "$name" = MemTotal: ] && break
done < /proc/meminfo
modprobe brd rd_nr=1 rd_size=$((size / 4 * 3)) && mke2fs -I 256 -i 65536 -m 0 /dev/ram0 > /dev/null ||
    die "no disk of memory"

# Half a megabyte is what 9p over virtio takes at most. The host's files are taken to stay as they
# are, so they are cached.
plan9=trans=virtio,version=9p2000.L,msize=512000
mkdir -p /host /memory /merged
mount -t 9p -o $plan9,ro,cache=loose root /host || die "no export of the host's root"
mount -t ext4 /dev/ram0 /memory || die "the disk of memory does not mount"
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work root /merged ||
    die "no layer over the host's root"

cd /merged || die "no root"
mkdir -p dev proc run sys
for folder in dev proc sys; do
    mount --move /$folder $folder
done
mkdir -p dev/pts dev/shm
mount -t devpts -o mode=0620,ptmxmode=0666 pts dev/pts
mount -t tmpfs shm dev/shm
mount -t tmpfs run run
mkdir run/level1
mount -t 9p -o $plan9 control run/level1 || die "no export with a script"

# Not only a chroot: in one, no user namespace can be made.
mount --move . /
exec chroot . /run/level1/supervise
die "cannot run the script"
