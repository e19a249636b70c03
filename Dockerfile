# The `epiphyte` binary in a small image:
#
#   docker build -t epiphyte .
#   docker run --rm -v "$PWD:/work" -v "$HOME/.cache/huggingface:/cache" --user "$(id -u)" \
#       epiphyte quickstart
#
# /work is the working directory, /cache the cache of models. The program runs in one process on
# the CPU, and stops cleanly, with a checkpoint, on `docker stop`.

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --release --locked -p epiphyte --features cli \
    && cp target/release/epiphyte /epiphyte

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /epiphyte /usr/local/bin/epiphyte
COPY LICENSE-APACHE LICENSE-MIT /usr/share/doc/epiphyte/
RUN mkdir -m 1777 /work /cache
ENV HF_HOME=/cache
WORKDIR /work
USER 1000
ENTRYPOINT ["epiphyte"]
