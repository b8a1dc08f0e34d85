"""Reads TLS reports with parsedmarc: files and messages. Prints the result of each as one JSON line."""

import json
import sys

import parsedmarc

for path in sys.argv[1:]:
    found = parsedmarc.parse_report_file(path, offline=True, always_use_local_files=True)
    print(json.dumps({"type": found["report_type"], "report": found["report"]}))
