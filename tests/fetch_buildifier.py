"""Fetches buildifier, the formatter and linter of BUILD files, from the npm registry.

npm is not needed: its package is an archive with one binary a platform, checked by its hash.

Usage: python tests/fetch_buildifier.py PATH
"""

import base64
import hashlib
import io
import os
import platform
import sys
import tarfile
import urllib.request

URL = "https://registry.npmjs.org/@bazel/buildifier/-/buildifier-8.2.1.tgz"
SHA512 = "eZ/Aq+2r4PcJa6LbPCT6ffgIJfTU/gYilqIzoX2OLM4nNkbQC6tTMPZNn7aHHjhGPxbNLv41zm4Xqt1olCLgXw=="
MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def main(path):
    member = f"package/buildifier-{sys.platform}_{MACHINES[platform.machine()]}"
    with urllib.request.urlopen(URL, timeout=120) as response:
        archive = response.read()
    digest = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if digest != SHA512:
        raise SystemExit(f"{URL}: unexpected content, sha512 {digest}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        binary = tar.extractfile(member).read()
    temporary = f"{path}.part"
    with open(temporary, "wb") as file:
        file.write(binary)
    os.chmod(temporary, 0o755)
    os.replace(temporary, path)


if __name__ == "__main__":
    main(sys.argv[1])
