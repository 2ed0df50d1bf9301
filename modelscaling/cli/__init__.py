"""The command line `modelscaling`, which is also the kubectl plugin `kubectl modelscaling`."""
