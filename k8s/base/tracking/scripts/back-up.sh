#!/bin/sh
# Dump both databases into $BACKUPS/<time>, and keep the newest $KEEP of such folders.
set -eu
PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
umask 077
name=$(date -u +%Y%m%dT%H%M%SZ)
new=$BACKUPS/.$name.new
rm -rf "$BACKUPS"/.*.new # of one that was cut short
mkdir "$new"
for database in mlflow accounts; do
  pg_dump --format custom --dbname "$database" --file "$new/$database.dump"
  pg_restore --list "$new/$database.dump" >/dev/null # it can be read
done
mv "$new" "$BACKUPS/$name"
echo "back-up: $BACKUPS/$name: $(du -sh "$BACKUPS/$name" | cut -f1)"
ls -1d "$BACKUPS"/*Z | sort -r | tail -n "+$((KEEP + 1))" | while read -r old; do
  rm -rf "$old"
  echo "back-up: $old is older than the newest $KEEP and was removed"
done
