"""`python -m penstock` is `penstock`."""

from penstock.app.main import main

main()
