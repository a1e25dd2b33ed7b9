#!/bin/sh
# MLflow's server: runs and users in PostgreSQL, artifacts in S3 by way of this server, so that it alone holds keys.
set -eu
: "${POSTGRES_PASSWORD:?}" "${MLFLOW_ADMIN_PASSWORD:?}" "${MLFLOW_FLASK_SERVER_SECRET_KEY:?}" "${MCC_BUCKET:?}"
umask 077
# Passwords may hold characters that an address or an ini file reads as its own.
python3 - <<'PY'
import os
from urllib.parse import quote

address = f"postgresql+psycopg2://mlflow:{quote(os.environ['POSTGRES_PASSWORD'], safe='')}@postgres:5432"
with open("/tmp/auth.ini", "w") as file:
    print("[mlflow]", "default_permission = READ", sep="\n", file=file)
    print("database_uri =", f"{address}/mlflow_auth".replace("%", "%%"), file=file)
    print("admin_username =", os.environ["MLFLOW_ADMIN_USERNAME"], file=file)
    print("admin_password =", os.environ["MLFLOW_ADMIN_PASSWORD"].replace("%", "%%"), file=file)
    print("authorization_function = mlflow.server.auth:authenticate_request_basic_auth", file=file)
with open("/tmp/address", "w") as file:
    print(f"{address}/mlflow", file=file)
PY
export MLFLOW_AUTH_CONFIG_PATH=/tmp/auth.ini
# By environment and not by option: options can be read in the list of processes.
MLFLOW_BACKEND_STORE_URI=$(cat /tmp/address)
export MLFLOW_BACKEND_STORE_URI
rm /tmp/address
exec mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers "${MLFLOW_WORKERS:-1}" \
    --artifacts-destination "s3://$MCC_BUCKET/mlflow" \
    --allowed-hosts "mlflow:5000,localhost:*,127.0.0.1:*${MLFLOW_ALLOWED_HOSTS:+,$MLFLOW_ALLOWED_HOSTS}"
