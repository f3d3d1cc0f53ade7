-- A node is no longer the reader of a partition's records, if it was.
--
-- KEYS: reader of the partition
-- ARGV: node
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
