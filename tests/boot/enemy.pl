# Run as root in a guest: sends the frames of a file, a line of hexadecimal digits each, and says then which services answer.
# usage: enemy.pl FRAMES PORT
use strict;
use IO::Select;
use Socket qw(:DEFAULT inet_pton pack_sockaddr_in6);
$| = 1;
my ($frames, $port) = @ARGV;

# AF_PACKET with ETH_P_ALL, bound to eth0 (packet(7)).
socket(my $wire, 17, SOCK_RAW, unpack("S", pack("n", 3))) or die "packet socket: $!";
open(my $index, "<", "/sys/class/net/eth0/ifindex") or die;
bind($wire, pack("S n i S C C a8", 17, 3, scalar(<$index>), 0, 0, 0, "")) or die "bind: $!";
open(my $lines, "<", $frames) or die "$frames: $!";
while (my $line = <$lines>) {
    chomp $line;
    # A full queue of the device takes more in a moment.
    until (defined send($wire, pack("H*", $line), 0)) { die "send: $!" unless $!{ENOBUFS} }
}

# Asks until there is an answer: IPv6 takes a while to be there.
sub ask {
    my ($type, $host, $to) = @_;
    my $six = $host =~ /:/;
    my $address = $six ? pack_sockaddr_in6($to, inet_pton(AF_INET6, $host)) : pack_sockaddr_in($to, inet_aton($host));
    for (1 .. 60) {
        socket(my $socket, $six ? AF_INET6 : AF_INET, $type, 0) or die "socket: $!";
        my $answer = "";
        if (connect($socket, $address) && defined send($socket, "question", 0) && IO::Select->new($socket)->can_read(2)) {
            recv($socket, $answer, 100, 0);
        }
        return $answer if $answer ne "";
        select(undef, undef, undef, 0.2);
    }
    return "nothing";
}

for my $to (["10.0.2.3", 53], ["fec0::3", 53], ["192.0.2.1", $port], ["2001:db8::1", $port]) {
    for my $type (SOCK_DGRAM, SOCK_STREAM) {
        print $type == SOCK_DGRAM ? "udp" : "tcp", " $$to[0] ", ask($type, @$to), "\n";
    }
}
