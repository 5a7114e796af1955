#!/bin/sh
# The report is looked at in a real browser. Debian's Chromium is installed where that is possible without asking.
set -eu
for browser in chromium chromium-browser google-chrome; do
  if command -v "$browser" >/dev/null; then exit 0; fi
done
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
else
  echo "The browser tests need Chromium or Chrome: install one (Debian: apt-get install chromium)," >&2
  echo "or set SUITE_ALLOW_NO_BROWSER=1 to leave those tests out." >&2
fi
