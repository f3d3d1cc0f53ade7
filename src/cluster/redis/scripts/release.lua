-- Ends a node's claim on a partition's records, if it has one.
--
-- KEYS: reader of the partition
-- ARGV: node
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
