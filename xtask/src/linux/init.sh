#!/bin/busybox sh
# The first process: it runs /script, prints its exit status as a KTAP line, and powers off. Without a script it is a shell.
export PATH=/bin

report() {
    echo "KTAP version 1"
    echo "1..1"
    echo "$1"
    poweroff -f
}

/bin/busybox --install -s /bin
mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t devtmpfs devtmpfs /dev ||
    report "not ok 1 init # a mount failed"
# Of what the kernel says, warnings and worse go on to the console. After a panic the machine is reset.
echo 5 >/proc/sys/kernel/printk
echo -1 >/proc/sys/kernel/panic
# The kernel makes no large pages unasked where it has less than 512 MiB, nor where it was built so; without them there is no file.
large_pages=/sys/kernel/mm/transparent_hugepage/enabled
[ ! -e $large_pages ] || echo always >$large_pages

if [ -e /script ]; then
    sh /script
    status=$?
    if [ $status = 0 ]; then
        report "ok 1 script"
    else
        report "not ok 1 script # exit status $status"
    fi
else
    setsid cttyhack sh
    poweroff -f
fi
