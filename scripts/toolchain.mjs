// Says what is missing before a build fails for want of it.

import { spawnSync } from 'node:child_process'

const { status } = spawnSync('cargo', ['--version'], { stdio: 'ignore' })
if (status !== 0) {
  console.error('obmalloc: building in a clone needs a Rust toolchain, and `cargo --version` does not run.')
  console.error('Install one (https://rustup.rs, Rust 1.88 or later, with a C linker), and see that cargo is on PATH.')
  process.exit(1)
}
