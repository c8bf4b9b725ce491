"""`python -m dynquant`, for places where the `dynquant` script is not on the path."""

from dynquant.cli import main

main()
