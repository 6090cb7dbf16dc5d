#!/bin/sh
# start-postgres.sh [OPTION...]: start PostgreSQL on $PGDATA with these options; where there is nothing yet, make it first,
# with the account and the databases of MLflow.
# It needs the server's programs alone, on PATH or where Debian keeps them: any image that has them will do.
set -eu
PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)

if [ -s "$PGDATA/PG_VERSION" ]; then
  made=$(cat "$PGDATA/PG_VERSION") here=$(postgres --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
  if [ "$made" != "$here" ]; then
    echo "start-postgres: the data are of PostgreSQL $made, this image has $here: take an image with $made; to move," >&2
    echo "start-postgres: back up with it, empty the volume, start this one, restore" >&2
    exit 2
  fi
else
  new=$PGDATA.new # a start that is cut short leaves nothing that looks like data
  rm -rf "$new"
  # Inside of the pod anybody is who they say; from outside, only `mlflow` comes in, with its password.
  initdb --pgdata "$new" --username postgres --auth-local trust --auth-host scram-sha-256 \
    --encoding UTF8 --locale C --data-checksums --no-instructions
  echo "host all mlflow all scram-sha-256" >>"$new/pg_hba.conf"
  postgres --single -j -D "$new" postgres >/dev/null <<SQL
CREATE ROLE mlflow LOGIN CREATEDB PASSWORD '$(printf %s "$PGPASSWORD" | sed "s/'/''/g")';

CREATE DATABASE mlflow OWNER mlflow;

CREATE DATABASE accounts OWNER mlflow;
SQL
  mv "$new" "$PGDATA"
fi
exec postgres -D "$PGDATA" "$@"
