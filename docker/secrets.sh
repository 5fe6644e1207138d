#!/usr/bin/env bash
# Makes docker/secrets: what Ray, PostgreSQL and the dashboard ask for. What is there already stays as it is.
#
# Each file holds one line without its end: Kubernetes would hand that on too. Put in another URL in storage_url for a PostgreSQL of your own.
set -euo pipefail

folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
# Compose shows a file to containers as it is, and their user is none of this machine: so everyone may read the files,
# and nobody else the folder.
chmod 700 "$folder"
umask 022

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
keep() { [ -s "$folder/$1" ] || printf '%s' "$2" > "$folder/$1"; }

keep auth_token "$(random)"
keep dashboard_password "$(random | cut -c1-24)"
keep postgres_password "$(random)"
keep storage_url "postgresql://vqsearch:$(cat "$folder/postgres_password")@postgres/vqsearch"
echo "secrets are in $folder; the dashboard's password: cat $folder/dashboard_password"
