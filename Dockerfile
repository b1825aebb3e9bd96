# The agent and the command line, for those who run them in Docker:
#
#   make image            builds bin/maneki, then this
#   maneki node run --container
#
# The binary is static; there is nothing else in the image.
FROM scratch
COPY bin/maneki /maneki
ENV PATH=/
ENTRYPOINT ["/maneki"]
CMD ["node", "run"]
