FROM busybox:$V
