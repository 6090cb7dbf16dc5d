#!/bin/sh
# Put the databases of $BACKUPS/$BACKUP (`latest`: the newest) in the place of the present ones, which stay beside them
# as <database>_before_<time>. Nothing is changed before everything has been read. MLflow must be scaled to 0.
set -eu
PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
if [ "$BACKUP" = latest ]; then BACKUP=$(cd "$BACKUPS" && ls -1d *Z 2>/dev/null | sort | tail -n 1); fi
for database in mlflow accounts; do
  if [ ! -f "$BACKUPS/${BACKUP:-?}/$database.dump" ]; then
    echo "restore: $BACKUPS/${BACKUP:-} has no $database.dump; there are: $(cd "$BACKUPS" && echo *)" >&2
    exit 2
  fi
done
export PGOPTIONS="-c client_min_messages=warning"
sql() { psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 --dbname postgres --command "$1"; }
used="SELECT count(*) FROM pg_stat_activity WHERE datname IN ('mlflow', 'accounts') AND backend_type = 'client backend'"
others=$(sql "$used") tries=0
while [ "$others" != 0 ] && [ "$tries" -lt "${PATIENCE:-60}" ]; do # MLflow may be on its way out
  sleep 1
  others=$(sql "$used") tries=$((tries + 1))
done
if [ "$others" != 0 ]; then
  echo "restore: $others connections use the databases; first: kubectl -n ganflow scale deployment mlflow --replicas 0" >&2
  exit 2
fi
now=$(date -u +%Y%m%dt%H%M%Sz)
for database in mlflow accounts; do
  sql "DROP DATABASE IF EXISTS ${database}_new"
  sql "CREATE DATABASE ${database}_new"
  pg_restore --no-owner --exit-on-error --dbname "${database}_new" "$BACKUPS/$BACKUP/$database.dump"
done
for database in mlflow accounts; do
  sql "ALTER DATABASE $database RENAME TO ${database}_before_$now"
  sql "ALTER DATABASE ${database}_new RENAME TO $database"
done
echo "restore: $BACKUP is in place; what was there is in mlflow_before_$now and accounts_before_$now"
