#!/usr/bin/env bash
# Lints what npm would publish with publint and @arethetypeswrong/cli, which npx fetches (40 MB). `scripts/package-lint.sh`, after a build.
set -euo pipefail
cd "$(dirname "$0")/.."
for folder in . npm/*/; do
  # Only the packages that have been built here.
  [ "$folder" = . ] || ls "$folder"*.node >/dev/null 2>&1 || continue
  npx --yes publint@0.3 --strict "$folder"
done
npx --yes @arethetypeswrong/cli@0.18 --pack .
