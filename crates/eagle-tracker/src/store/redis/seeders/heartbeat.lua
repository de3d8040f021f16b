-- Notes that a seeder is alive, and renews its leases.
--
-- KEYS: prefix
-- ARGV: as in common.lua, most seeders, seeder, its URL, what it says of itself (JSON), and for each lease: digest, token, progress
-- Answer: 'full' when there are too many seeders; else 'ok' and the digests of leases that are not of these tokens
local id, url = ARGV[5], ARGV[6]
local at = redis.call('HGET', urls, id)
if at ~= url then
  -- Whoever comes to an address has taken the place of the one before, whose process is not there any more.
  local before = redis.call('HGET', places, url)
  if before and before ~= id then
    forget(before)
    release_all(before)
  end
  if at then forget(id) end
  if redis.call('ZCARD', alive) >= tonumber(ARGV[4]) then expire() end
  if redis.call('ZCARD', alive) >= tonumber(ARGV[4]) then return {'full'} end
  redis.call('HSET', prefix .. 'first', id, ARGV[1])
  redis.call('HSET', urls, id, url)
  redis.call('HSET', places, url, id)
end
redis.call('ZADD', alive, 'GT', ARGV[1], id)
redis.call('HSET', prefix .. 'about', id, ARGV[7])
local answer = {'ok'}
for place = 8, #ARGV, 3 do
  local digest, token, progress = ARGV[place], ARGV[place + 1], ARGV[place + 2]
  local lease = lease_of(digest)
  if lease and lease.live and lease.token == token then
    if tonumber(progress) > tonumber(lease.progress) then
      lease.progress, lease.progressed = progress, ARGV[1]
    end
    keep(digest, lease)
  else
    answer[#answer + 1] = digest
  end
end
return answer
