module ratchet.dev/hack/pause

go 1.21
