#!/bin/sh
# Puts secrets that lie in files into the environment, where vqsearch looks for them, and becomes the command given.
set -eu

for name in VQSEARCH_STORAGE VQSEARCH_DASHBOARD_PASSWORD; do
    file=$(printenv "${name}_FILE" || true)
    [ -n "$file" ] || continue
    [ -r "$file" ] || { echo "with-secrets: ${name}_FILE: $file can't be read by user $(id -u)" >&2; exit 2; }
    IFS= read -r word < "$file" || true  # the last line may have no end
    [ -n "$word" ] || { echo "with-secrets: ${name}_FILE: $file is empty" >&2; exit 2; }
    export "$name=$word"
done

exec "$@"
