# syntax=docker/dockerfile:1

# Builds a release binary and ships it without a shell or a package manager.
#
#   docker build -t pusherd .
#   docker run -p 6001:6001 -e PUSHERD_APP_ID=1001 -e PUSHERD_APP_KEY=key -e PUSHERD_APP_SECRET=secret pusherd

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
# The dependencies are a layer of their own: they are built again only when Cargo.lock changes.
RUN mkdir -p src benches \
    && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && for bench in hot_path instructions; do echo 'fn main() {}' > benches/$bench.rs; done \
    && cargo build --release --locked \
    && rm -rf src
COPY src ./src
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

# glibc, the certificates that https webhooks are checked against, and nothing else; runs as user 65532.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/pusherd /usr/local/bin/pusherd
# In a container "any address" is the container's own: what is published is decided outside.
ENV PUSHERD_HOST=0.0.0.0
EXPOSE 6001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=4s --start-period=2s --retries=3 \
    CMD ["/usr/local/bin/pusherd", "health"]
ENTRYPOINT ["/usr/local/bin/pusherd"]
CMD ["serve"]
