#!/bin/sh
# The first process of the bench's guest once it has the host's files: runs the command, with its
# output on two ports of a virtio console, tells its status, and powers off.
#
# A port can be opened once only and is no pipe, so the command gets pipes.

cd /run/level1 || exit
. ./settings

mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share "$share" || exit

# What KVM counts.
mount -t debugfs debugfs /sys/kernel/debug || exit

# The ports appear some time after their driver.
port() {
    until set -- /dev/vport*"p$1" && [ -e "$1" ]; do sleep 0.02; done
    echo "$1"
}
mkfifo /run/stdout /run/stderr
cat /run/stdout > "$(port 1)" &
stdout=$!
cat /run/stderr > "$(port 2)" &
stderr=$!

# The host takes a guest for dead whose heart stops.
while :; do
    echo > heartbeat
    sleep 5
done &

# A group, to find whatever the command leaves running.
group=/sys/fs/cgroup/command
mkdir "$group"
echo started > status
(
    echo 0 > "$group/cgroup.procs"
    exec setsid --wait sh /run/level1/command < /dev/null
) > /run/stdout 2> /run/stderr
status=$?
echo 1 > "$group/cgroup.kill"
wait "$stdout" "$stderr"

echo "exited $status" >> status
sync -f "$share"
# The kernel's own way to power off needs no program.
echo o > /proc/sysrq-trigger
while :; do sleep 60; done
