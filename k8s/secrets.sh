#!/bin/sh
# sh k8s/secrets.sh [OVERLAY]: make the secrets of k8s/overlays/local (or of another overlay) as files that git ignores.
# What is there already stays: run it as often as you like.
set -eu
cd "${1:-$(dirname "$0")/overlays/local}"
umask 077
mkdir -p tracking/secrets runs/secrets
random() { LC_ALL=C tr -dc A-Za-z0-9 </dev/urandom | head -c "$1"; }
keep() { # FILE: write what comes in, unless it is there
  if [ -e "$1" ]; then
    echo "kept $1"
  else
    cat >"$1.new"
    mv "$1.new" "$1"
    echo "made $1"
  fi
}

keep tracking/secrets/postgres.env <<END
PGPASSWORD=$(random 32)
END
keep tracking/secrets/object-store.env <<END
AWS_ACCESS_KEY_ID=$(random 20)
AWS_SECRET_ACCESS_KEY=$(random 40)
END
. ./tracking/secrets/object-store.env
keep tracking/secrets/s3.json <<END
{"identities": [{"name": "mlflow", "credentials": [{"accessKey": "$AWS_ACCESS_KEY_ID", "secretKey": "$AWS_SECRET_ACCESS_KEY"}],
                 "actions": ["Admin"]}]}
END
keep tracking/secrets/mlflow-admin.env <<END
MLFLOW_AUTH_ADMIN_PASSWORD=$(random 32)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(random 48)
END
keep tracking/secrets/ganflow-mlflow.env <<END
MLFLOW_TRACKING_URI=http://mlflow.ganflow.svc:5000
MLFLOW_TRACKING_USERNAME=pipelines
MLFLOW_TRACKING_PASSWORD=$(random 32)
END
keep runs/secrets/ganflow-mlflow.env <tracking/secrets/ganflow-mlflow.env
