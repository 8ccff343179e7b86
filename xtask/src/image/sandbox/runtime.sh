#!/bin/sh
# What the builder runs in place of crun. Devices in images are none for a RUN: the container's root and what is mounted
# from images and contexts get `nodev`, which neither the builder nor crun has an option for. Crun clears the root's own
# flags, so that one is set by a hook, the last that runs before the container has its root: this script again.
if [ "$1" = nodev ]; then
    # Crun tells each hook the container's state, and fails where it is not read.
    cat >/dev/null
    exec mount -o remount,bind,nodev "$2"
fi
for word; do
    if [ "$before" = --bundle ]; then
        sed -i \
            -e "s|\"root\":{\"path\":\(\"[^\"]*\"\)|\"hooks\":{\"createContainer\":[{\"path\":\"$0\",\"args\":[\"$0\",\"nodev\",\1]}]},&|" \
            -e 's|"type":"bind","source":"[^"]*","options":\[|&"nodev",|g' \
            "$word/config.json" || exit
    fi
    before=$word
done
exec crun "$@"
