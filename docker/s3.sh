#!/bin/sh
# SeaweedFS as an S3 server with one identity.
set -eu
: "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}"
umask 077
python3 - > /tmp/s3.json <<'PY'
import json, os
keys = {"accessKey": os.environ["AWS_ACCESS_KEY_ID"], "secretKey": os.environ["AWS_SECRET_ACCESS_KEY"]}
actions = ["Admin", "Read", "Write", "List", "Tagging"]
print(json.dumps({"identities": [{"name": "mcc", "credentials": [keys], "actions": actions}]}))
PY
exec weed mini -dir /data -ip 127.0.0.1 -ip.bind 0.0.0.0 -s3.port 8333 -s3.config /tmp/s3.json \
    -webdav=false -admin.ui=false -s3.port.iceberg 0 -s3.port.lance 0
