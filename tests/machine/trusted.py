"""Machines whose firmware has a TPM and enforces Secure Boot, and images that are signed for them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from fleet import HOST, MAIN, RECIPE, Fleet
from vm import Vm

SIGN = (
    'sign: {certificate: "${cert}/public/db.crt", key: "${cert}/db.key", pcr_public: "${pcr}/public/pcr.pub", '
    'pcr_key: "${pcr}/pcr.key"'
)
MORE = """\
  tool:    {kind: overlay, files: {usr/bin/tool: {content: "#!/bin/sh\\necho overlaid\\n", mode: "755"}}}
  told:    {kind: overlay, files: {etc/told: {content: "by a confext"}}}
  driver:  {kind: overlay, files: {usr/lib/modules/5.4.0-other/extra/a.ko: {content: "no module"}}}
  ext:     {kind: sysext, layers: [tool], image: os, entry: tool, sign: {certificate: keys/public/db.crt, key: keys/db.key}}
  strange: {kind: sysext, layers: [tool], entry: strange, sign: {certificate: other/public/db.crt, key: other/db.key}}
  conf:    {kind: confext, layers: [told], entry: told, sign: {certificate: keys/public/db.crt, key: keys/db.key}}
  wrong:   {kind: sysext, layers: [driver], entry: driver}
"""


class Trusted(Fleet):
    """The fleet's recipe with signatures, encryption and extensions."""

    recipe: ClassVar[str] = "trusted.yaml"

    def written(self) -> None:
        super().written()
        for name in ("keys", "other"):
            command = [sys.executable, "-c", MAIN, "keys", "new", name]
            subprocess.run(command, cwd=self.folder, capture_output=True, check=True)
        text = RECIPE.replace("iproute2]", "iproute2, libcryptsetup12]")
        text = text.replace('config: ""', 'config: "", cert: keys, pcr: keys')
        text = text.replace(
            "binds: [var/lib/containers]",
            f"binds: [var/lib/containers]\n    encrypt: {{recovery: keep}}\n    {SIGN}}}",
        )
        text = text.replace("format: raw\n", f"format: raw\n    {SIGN}, enrol: keys/public}}\n", 1)
        text = text.replace("{kind: iso, image: boot,", f"{{kind: iso, image: boot, {SIGN}}},", 1)
        known = f'insecure: ["{HOST}:{self.registry.rpartition(":")[2]}"]'
        text = text.replace("health:", f"extensions: {{db: keys/public/db.crt}}, {known}, health:", 1)
        text = text.replace("  qemu:", MORE + "  qemu:")
        (self.folder / self.recipe).write_text(text)
        if (lock := self.folder / "machine.lock").exists():
            lock.rename(self.folder / "trusted.lock")

    def extensions(self) -> str:
        """Publish the extensions; what a reference to one begins with."""
        words = ["ext", "strange", "conf", "wrong", "--set", f"at={self.registry}/ext:1"]
        recipe = (
            (self.folder / self.recipe)
            .read_text()
            .replace("targets: [os, boot]", "targets: [ext, strange, conf, wrong]")
        )
        (self.folder / "extensions.yaml").write_text(recipe)
        if (lock := self.folder / "trusted.lock").exists():
            shutil.copyfile(lock, self.folder / "extensions.lock")
        self.kbuild("run", "extensions.yaml", *words)
        return f"{HOST}:{self.registry.rpartition(':')[2]}/ext:1"

    def trusted(self, folder: Path) -> TrustedVm:
        """A machine as it leaves the factory, its firmware in setup mode."""
        return TrustedVm.like(self.machine(folder))

    def installing(self, folder: Path, config: str) -> TrustedVm:
        """One with an empty disk and a CD, which has this configuration."""
        return TrustedVm.like(self.live(folder, config))


class TrustedVm(Vm):
    """OVMF that can enforce Secure Boot, with System Management Mode to protect its variables, and swtpm."""

    _tpm: subprocess.Popen[bytes] | None = None

    @classmethod
    def like(cls, vm: Vm) -> TrustedVm:
        """The same machine with a TPM and such firmware."""
        return cls(vm.tree, vm.folder, vm.disk, *vm.more)

    def on(self) -> None:
        folder = self.folder / "tpm"
        folder.mkdir(exist_ok=True)
        libraries = self.tree / "usr/lib/x86_64-linux-gnu"
        command = [libraries / "ld-linux-x86-64.so.2", "--library-path", f"{libraries}:{libraries}/swtpm"]
        command += [self.tree / "usr/bin/swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}"]
        command += ["--ctrl", f"type=unixio,path={folder}/socket"]
        with (self.folder / "swtpm.log").open("ab") as log:
            self._tpm = subprocess.Popen(command, stdout=log, stderr=log)
        while not (folder / "socket").exists():
            assert self._tpm.poll() is None, (self.folder / "swtpm.log").read_text()
            time.sleep(0.05)
        super().on()

    def off(self) -> None:
        super().off()
        if self._tpm:
            self._tpm.kill()
            self._tpm.wait()
            self._tpm = None
        (self.folder / "tpm/socket").unlink(missing_ok=True)

    def asked(self, words: str) -> Any:
        """What the machine's program says to this, as a document."""
        return json.loads(self.ok(f"kbuild-node {words} --json"))

    def encryption(self) -> Any:
        return self.asked("encryption")

    def _arguments(self) -> list[str]:
        plain = ["q35,smm=on" if one == "q35" else one for one in super()._arguments()]
        code = [one.replace("OVMF_CODE_4M.fd", "OVMF_CODE_4M.secboot.fd") for one in plain]
        socket = f"socket,id=tpm,path={self.folder}/tpm/socket"
        return [
            *code,
            *("-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1"),
            *(
                "-chardev",
                socket,
                "-tpmdev",
                "emulator,id=tpm0,chardev=tpm",
                "-device",
                "tpm-tis,tpmdev=tpm0",
            ),
        ]
