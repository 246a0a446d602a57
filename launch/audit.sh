#!/usr/bin/env bash
# Look the locked packages up in a database of known vulnerabilities:
#     bash launch/audit.sh
#
# Ends with 0 and says so where no database can be reached, with 1 where a package has a known fault.
# pip-audit goes into a throw-away environment: it is of no use to a run.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
python="${PYTHON:-python3}"
database="${OPD_RAY_AUDIT_URL:-https://api.osv.dev}"

answers() {
    "$python" - "$database" <<'PY' 2> /dev/null
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=5)
except urllib.error.HTTPError as error:  # it is there: its root has no page
    sys.exit(error.code >= 500 or error.code == 403)
PY
}

if ! answers; then
    echo "audit skipped: no database of vulnerabilities answers at $database" >&2
    exit 0
fi
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/env"
"$scratch/env/bin/python" -m pip --disable-pip-version-check install --quiet 'pip-audit>=2.7,<3'
"$scratch/env/bin/pip-audit" --vulnerability-service osv --disable-pip --no-deps \
    --requirement "$here/../requirements/cpu.txt"
