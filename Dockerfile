# syntax=docker/dockerfile:1

# Builds the binary with the profile `dist` and ships it stripped, without a shell or a package manager. Its symbols are
# an image of their own:
#
#   docker build --target symbols --output symbols .
#
#   docker build -t pusherd .
#   docker run -p 6001:6001 -e PUSHERD_APP_ID=1001 -e PUSHERD_APP_KEY=my-key -e PUSHERD_APP_SECRET="$(openssl rand -hex 20)" pusherd

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY malloc-trim ./malloc-trim
# The dependencies are a layer of their own: they are built again only when Cargo.lock changes.
RUN mkdir -p src benches \
    && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && for bench in hot_path; do echo 'fn main() {}' > benches/$bench.rs; done \
    && cargo build --profile dist --locked \
    && rm -rf src
COPY src ./src
RUN touch src/main.rs src/lib.rs && cargo build --profile dist --locked \
    && cd target/dist \
    && objcopy --only-keep-debug pusherd pusherd.debug \
    && objcopy --strip-all --add-gnu-debuglink=pusherd.debug pusherd pusherd.stripped

FROM scratch AS symbols
COPY --from=build /src/target/dist/pusherd.debug /

# glibc, the certificates that https webhooks are checked against, and nothing else; runs as user 65532.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/dist/pusherd.stripped /usr/local/bin/pusherd
# In a container "any address" is the container's own: what is published is decided outside.
ENV PUSHERD_HOST=0.0.0.0
# The second is Reverb's, where its variables are in use.
EXPOSE 6001 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=4s --start-period=2s --retries=3 \
    CMD ["/usr/local/bin/pusherd", "health"]
ENTRYPOINT ["/usr/local/bin/pusherd"]
CMD ["serve"]
