#!/bin/sh
# Chromium for the browser tests, installed where that is allowed. Exit status: 0 it is there; 1 it cannot be installed
# here (not root, no apt-get, or no package server answers), and the tests are skipped by name; 2 its installation failed.
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "no chromium, and it may not be installed here: the browser tests are skipped" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >&2
if ! apt-get install -y -qq --no-install-recommends --download-only chromium >&2; then
  echo "no chromium, and no package server has it: the browser tests are skipped" >&2
  exit 1
fi
apt-get install -y -qq --no-install-recommends chromium >&2 || exit 2
command -v chromium >/dev/null 2>&1 || exit 2
