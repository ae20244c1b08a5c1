"""Downloads single files as Streaming does; prints [[names of the error's classes, text] or null, ...] as JSON.

usage: download.py FOLDER TIMEOUT_S URL ...   each URL to the file FOLDER/<last part of the URL>, within its time
"""

import json
import sys
from pathlib import Path

from streaming.base.storage import CloudDownloader

import shoal.mosaic  # noqa: F401


def attempt(folder, timeout_s, url):
    try:
        CloudDownloader.direct_download(url, str(Path(folder, url.rpartition("/")[2])), float(timeout_s))
    except Exception as error:
        return [[base.__name__ for base in type(error).__mro__], str(error)]
    return None


if __name__ == "__main__":
    folder, *given = sys.argv[1:]
    print(json.dumps([attempt(folder, *given[start : start + 2]) for start in range(0, len(given), 2)]))
