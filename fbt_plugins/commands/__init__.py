"""The commands of ``fbt``, a file each."""
