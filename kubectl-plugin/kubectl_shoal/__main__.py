"""`python -m kubectl_shoal`: the plugin where its script is not on the path."""

import sys

from kubectl_shoal import main

if __name__ == "__main__":
    sys.exit(main())
