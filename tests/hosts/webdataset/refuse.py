"""What WebDataset says of URLs that cannot be read; prints [[names of the error's classes, text], ...] as JSON.

usage: refuse.py URL...   A URL that begins with "write:" is opened for writing.
"""

import json
import sys

import webdataset as wds

import shoal.webdataset  # noqa: F401


def attempt(url):
    try:
        if url.startswith("write:"):
            wds.gopen(url.removeprefix("write:"), "wb")
        else:
            list(wds.WebDataset([url], shardshuffle=False))
    except Exception as error:
        return [[base.__name__ for base in type(error).__mro__], str(error)]
    return None


if __name__ == "__main__":
    print(json.dumps([attempt(url) for url in sys.argv[1:]]))
