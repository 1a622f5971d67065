"""What reproduces the figures of the documentation."""

from shearling.command_line import quiet_libraries

quiet_libraries()
