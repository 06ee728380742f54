"""Draws the digits pictures of the documentation in a light and a dark version. Finished runs are not repeated.

python docs/pictures.py
"""

import os
import pathlib
import shutil
import subprocess
import sys

DOCS = pathlib.Path(__file__).parent
# Picture, command, and the file that the command writes. A report is drawn only when a run ends: one run per style.
PICTURES = (
    ('gradients-digits', 'residual_block --out={out}/gradients.png', 'gradients.png'),
    ('resnet20-digits', 'resnet --workdir={out}/resnet20-{style}', 'resnet20-{style}/report.png'),
    ('degradation-digits', 'degradation --epochs=20', 'degradation.png'),
    ('transfer-digits', 'transfer', 'transfer.png'),
)
STYLES = {'light': {}, 'dark': {'MATPLOTLIBRC': str(DOCS / 'dark.matplotlibrc')}}


def main() -> None:
    """Runs each command once per style."""
    root = DOCS.parent / 'runs' / 'pictures'
    for name, command, file in PICTURES:
        out = root / name
        for style, environment in STYLES.items():
            script, *flags = command.format(out=out, style=style).split()
            if not any(flag.startswith(('--workdir', '--out')) for flag in flags):
                flags.append(f'--workdir={out}')
            out.mkdir(parents=True, exist_ok=True)
            arguments = [sys.executable, '-m', f'experiments.{script}', *flags]
            subprocess.run(arguments, cwd=DOCS.parent, env=os.environ | environment, check=True)
            shutil.copy(out / file.format(style=style), DOCS / f'{name}{"-dark" if style == "dark" else ""}.png')


if __name__ == '__main__':
    main()
