"""`python -m shearling_runtime`: the same as `shearling-run`."""

from shearling_runtime.command import main

main()
